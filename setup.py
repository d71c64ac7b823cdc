from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="autoregressive-diffusion-pytorch",
    version="1.0.0",
    description="Autoregression over continuous tokens: a causal transformer with a diffusion or flow head, in PyTorch",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    keywords=["autoregressive", "diffusion", "rectified flow", "image generation", "continuous tokens"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["autoregressive_diffusion_pytorch", "autoregressive_diffusion_pytorch.*"]),
    package_data={"autoregressive_diffusion_pytorch": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "accelerate>=1.6",
        "click>=8.1",
        "einops>=0.8",
        "ema-pytorch>=0.7",
        "huggingface-hub>=0.30",
        "numpy",
        "pillow>=10.1",
        "safetensors>=0.4",
        "simplejpeg>=1.7",
        "tensorboard>=2.10",
        "torch>=2.6",
        "torchvision>=0.21",
        "tqdm>=4.60",
        "x-transformers>=2.31",
    ],
    extras_require={
        "demo": ["scikit-learn>=1.3"],
        "test": ["build", "datasets>=3.0", "setuptools>=77", "wheel", "pytest>=8.0", "ruff>=0.9", "scikit-learn>=1.3"],
    },
    entry_points={"console_scripts": ["ardiff=autoregressive_diffusion_pytorch.cli:main"]},
)
