"""What a maintainer runs now and then. Not part of the package."""
