"""The blocks that models are made of: layers, edges, readouts and derivatives."""
