"""Packaging. `trainers/` and `plans/` are mapped into the one package: site-packages gets no other
name.
"""

import ast
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
MAPPED = {"nnssl.trainers": "trainers", "nnssl.plans": "plans"}
START_UP = "nnssl_trainers.pth"
EXPORT = ["onnx", "onnxscript", "onnxruntime"]


def version() -> str:
    """The `__version__` of the package, without importing it."""
    for node in ast.parse((HERE / "nnssl" / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__version__":
            return ast.literal_eval(node.value)
    raise ValueError("nnssl/__init__.py has no __version__")


class BuildWithStartUpFile(build_py):
    """Adds the file that lets nnU-Net find our trainers with no variable set
    (documentation/nnunet.md).
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file(str(HERE / "trainers" / START_UP), str(Path(self.build_lib) / START_UP))

    def get_source_files(self) -> list[str]:
        """What an sdist holds: with this file, so that it can be installed."""
        return [*super().get_source_files(), f"trainers/{START_UP}"]


setup(
    name="nnssl-swin",
    version=version(),
    description="Self-supervised pretraining of Swin encoders on raw CT, fine-tuned inside stock "
    "nnU-Net",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["documentation/LICENSE"],
    keywords=["CT", "self-supervised learning", "segmentation", "nnU-Net", "Swin transformer"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[*find_packages(include=["nnssl", "nnssl.*"]), *MAPPED],
    package_dir=MAPPED,
    package_data={
        "nnssl": ["py.typed"],
        "nnssl.study.report": ["page.html"],
        "nnssl.weights": ["*.md", "*/model.safetensors", "*/config.json", "*/README.md"],
    },
    cmdclass={"build_py": BuildWithStartUpFile},
    install_requires=[
        "nnunetv2>=2.8.0",  # the first release that looks for trainers outside its own folder
        # the first whose weights_only=True executes nothing; with AdamW(fused=True) on the CPU
        "torch>=2.6",
        "numpy>=1.24",  # nnU-Net's own bound
        "blosc2>=3.3.2",  # nnU-Net's own bound: it writes what we read
        "simpleitk>=2.2.1",  # nnU-Net's own bound: both must read a scan alike
        "nibabel",  # nnU-Net brings it along; orientations, and NIfTI that ITK refuses
        "matplotlib>=3.7",  # the first with legends outside of the axes
        "pillow>=9.1",  # matplotlib brings it along; the first with Image.Resampling
        "tqdm",
        "pyyaml",
        "jinja2",  # torch brings it along; the pages of the reports
        "pandas>=2.0",  # nnU-Net brings it along; the rows and tables of a study's report
        "scipy",
        "scikit-learn",  # nnU-Net brings it along; the k-means of parcels
        "safetensors",  # nnU-Net brings it along; nnssl_convert reads such files
        "huggingface_hub",  # nnU-Net brings it along (timm); hf:// addresses
    ],
    extras_require={
        # Oracles and tools of the tests, never imported by the package.
        "test": [
            "pytest",
            "pytest-xdist",  # half the time on two cores
            "monai>=1.6",
            "lightly",
            "timm",
            "setuptools>=70.1",
            "submitit",
            "jaxtyping",  # with beartype: the shapes in annotations are checked by a test
            "beartype",
            *EXPORT,
        ],
        "export": EXPORT,
        "tensorboard": ["tensorboard"],
        "wandb": ["wandb"],
        "energy": ["nvidia-ml-py"],
        "slurm": ["submitit"],
    },
    entry_points={
        "console_scripts": [
            "nnssl_pretrain = nnssl.cli:pretrain",
            "nnssl_inspect = nnssl.cli:inspect",
            "nnssl_plan = nnssl.cli:plan",
            "nnssl_convert = nnssl.cli:convert",
            "nnssl_embed = nnssl.cli:embed",
            "nnssl_export = nnssl.cli:export",
            "nnssl_study = nnssl.cli:study",
            "nnssl_demo = nnssl.cli:demo",
            "nnssl_doctor = nnssl.cli:doctor",
            "nnssl_report = nnssl.cli:report",
        ]
    },
)
