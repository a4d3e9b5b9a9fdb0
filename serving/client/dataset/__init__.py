"""`python -m serving.client dataset`: a data set of images in files that others read."""
