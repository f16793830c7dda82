"""Pictures: pure functions from plain tables to a matplotlib `Figure`, and one saver.

style       the one table recipe -> colour, marker and line; canvas, caption, intervals
saving      PDF, PNG and the JSON of what is plotted, byte-stable
outcomes    resolve rates, paired differences, recovery, slips, stop reasons
process     disagreement by turn, dose, loss, schedules
exact       the theory's costs and state distributions
paper       the paper's own table and scaling curves, with blanks where a number is not known

Nothing here computes a result beyond Wilson's interval of given counts; no pyplot state is touched. A table
that lacks a column is a DataError that names it, a recipe without a style a ConfigError.
"""

from dagger_nb.figures.exact import occupancy, theory_costs, theory_disagreement
from dagger_nb.figures.outcomes import paired_differences, recovery, resolve_rates, slip, stop_reasons
from dagger_nb.figures.paper import paper_results, paper_scaling
from dagger_nb.figures.process import disagreement_by_turn, dose, learning_curve, schedules
from dagger_nb.figures.saving import save
from dagger_nb.figures.style import STYLES, caption_of

__all__ = [
    "STYLES",
    "caption_of",
    "disagreement_by_turn",
    "dose",
    "learning_curve",
    "occupancy",
    "paired_differences",
    "paper_results",
    "paper_scaling",
    "recovery",
    "resolve_rates",
    "save",
    "schedules",
    "slip",
    "stop_reasons",
    "theory_costs",
    "theory_disagreement",
]
