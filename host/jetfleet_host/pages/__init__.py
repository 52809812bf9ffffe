"""Self-contained report pages: charts as inline SVG, one sheet of style for light, dark, wide and narrow. No script, nothing fetched."""
