"""C++ sources of the CPU engine: ``build.py`` compiles them, ``backend.py`` installs the result."""
