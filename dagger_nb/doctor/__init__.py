"""What this machine has and lacks for a profile, each finding with its next step; nothing is started.

checks        one finding, and those of a disk
machine       what every profile needs: Python, packages, a sandbox, cores, the committed base model
containers    what sandboxes of Docker's need
gpu           what a served profile needs: a GPU that fits, a torch that can use it, a compiler, vLLM
models        tokenizers, chat templates, context
room          free space for models and runs
teacher       an endpoint, which is asked; the budget
tasks         real tasks: are they here, do they suffice, can they be graded
examination   all of these for one profile
"""

from dagger_nb.doctor.checks import Check
from dagger_nb.doctor.examination import examine, table

__all__ = ["Check", "examine", "table"]
