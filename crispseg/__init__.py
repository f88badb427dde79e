"""High-resolution semantic segmentation that runs fast on the device in front of you.

Importing this package needs numpy alone; every heavy library is imported by the module that uses it.
"""

__version__ = "0.1.0"
