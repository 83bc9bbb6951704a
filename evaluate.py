"""Judge a bundle, or a plan that any tool made, on data that no search has seen.

Run ``python evaluate.py --help`` for the settings.
"""

from scripts.entry import main
from scripts.evaluation import evaluate

if __name__ == "__main__":
    main("evaluate", evaluate)
