"""Local files, S3 and the image cache."""
