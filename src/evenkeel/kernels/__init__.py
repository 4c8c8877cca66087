"""How operations are made fast, one package per kind of device; nothing here is compiled before it is first called."""
