"""The matrix {model x target x method}: every cell measured on a named device, computed as a floor, or empty with the reason."""
