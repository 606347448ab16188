"""Other people's data sets, and own pairs, brought into the one layout."""
