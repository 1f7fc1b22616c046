"""The commands that come with the package: mpn-train and mpn-demo."""
