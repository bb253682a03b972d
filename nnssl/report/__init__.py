"""One HTML page of a pretraining, or of a collection of scans: `nnssl_report FOLDER`."""
