QUICK = {
    "input.size": 16,
    "input.train_resize": 20,
    "input.test_resize": 20,
    "schedule.epochs": 2,
    "schedule.milestones": [1],
    "batch.size": 16,
    "evaluation.nmi_restarts": 1,
    "head.dim": 8,
}
"""Recipe settings with which a run takes a moment."""
