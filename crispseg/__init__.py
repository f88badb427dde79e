"""High-resolution semantic segmentation that runs fast on the device in front of you.

Importing this package needs numpy alone; every heavy library is imported by the module that uses it.
"""

import os

# ONNX Runtime of 1.29 and newer keeps an identity of the device on disk and sends measurements home, unless told before
# it is loaded. A tool for devices does neither on its own account; set the variable to 0 to allow it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
