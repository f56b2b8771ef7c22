"""What is installed, said once: the build and the package read both here.

The distribution is not called like the package, because the name "mlbench" belongs to another
project on the Python package index.
"""

DISTRIBUTION = "dmlbench"

__version__ = "0.1.0"
