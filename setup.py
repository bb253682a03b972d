"""Packaging. `trainers/` and `plans/` are mapped into the one package, so that nothing else lands in site-packages."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
PACKAGES = [
    "nnssl",
    *(f"nnssl.{part}" for part in
      ("data", "views", "encoder", "modules", "methods", "train", "network", "bench", "trainers", "plans")),
]


class BuildWithStartUpFile(build_py):
    """Adds the start-up file that lets nnU-Net find our trainers with no variable set (documentation/nnunet.md)."""

    def run(self) -> None:
        super().run()
        self.copy_file(str(HERE / "trainers" / "nnssl_trainers.pth"), str(Path(self.build_lib) / "nnssl_trainers.pth"))


setup(
    name="nnssl-swin",
    version="0.1.0",
    description="Self-supervised pretraining of Swin encoders on raw CT, fine-tuned inside stock nnU-Net",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["documentation/LICENSE"],
    python_requires=">=3.10",
    packages=PACKAGES,
    package_dir={"nnssl.trainers": "trainers", "nnssl.plans": "plans"},
    cmdclass={"build_py": BuildWithStartUpFile},
    install_requires=[
        "nnunetv2>=2.8.0",  # the first release that looks for trainers outside its own folder
        "torch",
        "numpy",
        "blosc2",
        "simpleitk",
        "matplotlib",
        "tqdm",
    ],
    extras_require={
        "test": ["pytest", "monai>=1.6", "lightly"],  # oracles, never imported by the package
        "tensorboard": ["tensorboard"],
    },
    entry_points={
        "console_scripts": [
            "nnssl_pretrain = nnssl.cli:pretrain",
            "nnssl_inspect = nnssl.cli:inspect",
            "nnssl_plan = nnssl.cli:plan",
            "nnssl_demo = nnssl.cli:demo",
        ]
    },
)
