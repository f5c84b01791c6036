"""Models on their way into the models folder: what to fetch, from where, and how it becomes a model there.

    asked.py     what somebody asked for, as a closed set of kinds
    index.py     the models known by short names (`external/models.toml`)
    machine.py   what this machine can run
    hub.py       Hugging Face's repositories
    plan.py      the files to fetch, chosen for this machine, and why these
    download.py  one file over HTTP
    fetch.py     a plan carried out: room, files, digests, the model's place

The command line and the board's agent do the same here; neither Redis nor a front is known.
"""
