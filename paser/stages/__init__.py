"""One file a stage: read inputs, call the rooms, write outputs. `graph.py` lists them all."""
