"""How agents are judged, from a patch to a table.

predictions   SWE-bench's JSONL of patches, and the run id that carries its hash
grades        one verdict an instance, and the append-only file that makes grading resumable
protection    what a patch may not touch, and the canaries that must fail
grading       one patch in a fresh sandbox, judged by swebench's own parser and report
harness       the same predictions through swebench's command line and Docker
tables        scores with both denominators, and paired comparisons of recipes
diagnostics   where an agent leaves the teacher's path, and whether it finds back
protocol      protocol errors, the teacher's real dose, lessons in the labels
"""
