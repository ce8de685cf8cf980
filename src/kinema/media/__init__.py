"""Read and write clips and images; pixels are uint8 THWC only in this package."""
