"""Hours, memory, disk, tokens and money of a reproduction, before they are spent.

usage        what runs used, phase by phase
rates        what one episode, turn, token or patch uses: measured
scale        the same at the paper's scale: from shapes, a GPU's data sheet and named assumptions
plan         the prediction: rates times the counts that settings give
footprint    what is no time: GPU memory, disk, images, the teacher's bill
comparison   a prediction beside what the runs used
needs        one notebook's part of it
"""
