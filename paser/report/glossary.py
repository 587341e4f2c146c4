"""The report's terms, each in words that need none of the others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """`key` is the anchor; `name` the heading; `text` one or two plain sentences."""

    key: str
    name: str
    text: str


GLOSSARY: tuple[Term, ...] = (
    Term(
        "budget",
        "Budget",
        "How much may be chosen from the pool: a number of rows, a share of them, or a number of training "
        "tokens. It is divided over the clusters before any row is chosen.",
    ),
    Term(
        "capability",
        "Capability",
        "What a row asks for, such as code or maths. It is the label which the row's source declares or, in "
        "a pool without labels, the row's cluster. Nothing is selected by label.",
    ),
    Term(
        "cds",
        "Capability degradation score (CDS)",
        "How badly pruning hurt one cluster: the mean JSD between the original and the pruned model over the "
        "cluster's rows. From 0 (unharmed) to 0.693. The paper's rule (select.selector: paser) divides the "
        "budget by it; the default rule by what a training token recovers in the cluster.",
    ),
    Term(
        "cluster",
        "Cluster",
        "A group of rows that ask for similar things, found from the meaning of their text alone and named "
        "after phrases that are typical of it.",
    ),
    Term(
        "conflict",
        "Conflict",
        "A row is turned away when it joins two known concepts that no accepted row has joined before: "
        "training on it might teach something that contradicts the rest. The paper's rule does so, the "
        "default rule turns none away.",
    ),
    Term(
        "control",
        "Control",
        "The same pruned model trained in the same way on randomly drawn rows with the same number of "
        "training tokens. Only what the recovered model gains over it is due to the choice of rows.",
    ),
    Term(
        "fidelity-gap",
        "Fidelity gap",
        "The share of the distance to the original model that was won back: 1 − JSD of the recovered model ÷ "
        "JSD of the pruned model. 0 is as far away as the pruned model, 1 is the same as the original, and "
        "below 0 is further away than before.",
    ),
    Term(
        "gap-closed",
        "Gap closed",
        "The share of the rise in loss that was undone: (recovered − pruned) ÷ (original − pruned). Over "
        "several capabilities it is a ratio of means. Above 1, training taught a format of answer that the "
        "original model never had.",
    ),
    Term(
        "held-out",
        "Held-out rows",
        "Rows set aside before anything was chosen. No model was trained on them, and none of them stands in "
        "the pool, not even nearly.",
    ),
    Term(
        "ies",
        "Individual efficiency score (IES)",
        "What rows of a cluster go by, from the highest down. In the paper's rule it is how much damage a "
        "row shows for what it costs to train on: its JSD divided by the logarithm of its squared length in "
        "tokens. In the default rule it is how much of what can be won back in its cluster the row stands "
        "for beyond the rows before it, for what it costs.",
    ),
    Term(
        "interval",
        "Interval",
        "The range in which the value lies in 95 of 100 redraws of the held-out rows. It says nothing of how "
        "another training seed would have come out.",
    ),
    Term(
        "jsd",
        "Jensen–Shannon divergence (JSD)",
        "How differently two models continue the same text, averaged over the tokens of the response. From 0 "
        "(the same predictions) to 0.693 (nothing in common).",
    ),
    Term(
        "lora",
        "LoRA",
        "Training a few small added matrices instead of all the weights. They are merged into the model "
        "afterwards, and weights that pruning removed stay removed.",
    ),
    Term(
        "loss",
        "Loss",
        "How surprised a model is by the right response, in nats a token. Lower is better.",
    ),
    Term(
        "merkle",
        "Merkle root",
        "One digest that stands for the exact list of training rows, in order. Whoever changes, adds, "
        "removes or moves a single row gets another root.",
    ),
    Term(
        "recoverability",
        "Recoverability",
        "How much of the distance to the original model a small step of training on the row would take off, "
        "to first order. Below 0 it would lead away. The default rule counts it in the place of damage.",
    ),
    Term(
        "stage",
        "Stage",
        "One step of the pipeline, which reads files and writes files. It runs again only when something "
        "that it read has changed.",
    ),
    Term(
        "sweep",
        "Sweep",
        "Many runs of the whole pipeline that differ in one or a few settings, such as budget or seed.",
    ),
    Term(
        "task",
        "Task",
        "A set of questions with known right answers, such as a benchmark. The score says how many a model "
        "gets right; ± is its standard error over the questions.",
    ),
    Term(
        "wanda",
        "Wanda",
        "The default way of pruning: in each layer it removes the weights whose size, times the size of what "
        "passes through them, is least.",
    ),
)
