"""Do label-free metrics order small checkpoints as a linear probe does?"""
