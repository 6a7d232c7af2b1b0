"""Names of findings, their sides, organs and grades, in the order of every array of findings."""

from __future__ import annotations

FINDINGS = (
    "left pleural effusion",
    "right pleural effusion",
    "left pneumothorax",
    "right pneumothorax",
    "cardiomegaly",
    "pulmonary edema",
    "atelectasis",
    "consolidation",
)
"""The eight finding states, in the order of every array's columns. Left and right are the patient's."""
CHEXPERT = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""The 14 CheXpert observations, in the column order of `mimic-cxr-2.0.0-chexpert.csv.gz`."""
CHEXPERT_OF = {
    "left pleural effusion": "Pleural Effusion",
    "right pleural effusion": "Pleural Effusion",
    "left pneumothorax": "Pneumothorax",
    "right pneumothorax": "Pneumothorax",
    "cardiomegaly": "Cardiomegaly",
    "pulmonary edema": "Edema",
    "atelectasis": "Atelectasis",
    "consolidation": "Consolidation",
}
"""FINDINGS name -> CheXpert observation."""
ORGANS = ("left lung", "right lung", "heart", "facies diaphragmatica", "mediastinum", "spine")
"""The six organs that Dice is measured on. Left and right are the patient's."""
NO_CHANGE = "No significant change."
"""The prompt of a pair without any change; also what a system is asked when nothing shall change."""
PRESENT = 0.15
"""A finding is present (label 1) from this severity on; the change of a severity counts from it too."""
SIDED = ("Pleural Effusion", "Pneumothorax")
"""Observations that have a side of their own in FINDINGS."""
GRADES = ("mild", "moderate", "severe")
"""Grades of severity, ascending; `grade_word` has the word that a finding takes for each."""
