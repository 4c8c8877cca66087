"""The engine: a store that workers share, the work of one of them, and further processes that join."""
