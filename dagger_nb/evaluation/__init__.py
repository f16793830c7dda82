"""How agents are judged, from a patch to a table.

predictions   SWE-bench's JSONL of patches, and the run id that carries its hash
grades        one verdict an instance, and the append-only file that makes grading resumable
protection    what a patch may not touch, and the canaries that must fail
verdict       from a test log to a verdict: swebench's report, and the evidence behind a success
grading       one patch, or many, each in a fresh sandbox
harness       the same predictions through swebench's command line and Docker
shares        a rate with its counts and its interval
tables        scores with both denominators, and resolve rates over seeds
comparison    paired differences between recipes
readings      what one turn did
diagnostics   where an agent leaves the teacher's path, and whether it finds back
protocol      protocol errors, the teacher's real dose, lessons in the labels
"""
