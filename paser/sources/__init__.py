"""Where models and data come from: the source list, its URIs, and fetching them."""
