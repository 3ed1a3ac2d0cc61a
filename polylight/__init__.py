"""polylight: how polysemantic is every neuron of a vision network?"""
