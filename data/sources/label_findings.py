"""Findings of the cohorts that have labels and no reports: the lists behind their `findings.json`.

A name is the noun that prompts use, `label` the source's own column. Where nearly all studies tell the side (effusions
and pneumothoraces of PadChest: 94 % of the effusions), a finding has a column a side, as the phantom's have. Elsewhere
it has one, and the side is said in the texts alone (`State.side`): a column a side would be unknown too often.
"""

from progemu_jax.text.findings import ORGANS, SIDES, SIZES, Finding

_LUNGS, _HEART = ORGANS[:2], ("heart", "mediastinum")
_BASES = (*_LUNGS, "facies diaphragmatica")

NIH = (
    Finding("pleural effusion", "Effusion", None, _BASES, SIZES),
    Finding("pneumothorax", "Pneumothorax", None, _LUNGS, SIZES),
    Finding("cardiomegaly", "Cardiomegaly", None, _HEART),
    Finding("pulmonary edema", "Edema", None, _LUNGS),
    Finding("atelectasis", "Atelectasis", None, _BASES),
    Finding("consolidation", "Consolidation", None, _LUNGS),
    Finding("infiltration", "Infiltration", None, _LUNGS),
    Finding("pneumonia", "Pneumonia", None, _LUNGS),
    Finding("mass", "Mass", None, _LUNGS, SIZES),
    Finding("nodule", "Nodule", None, _LUNGS, SIZES),
    Finding("emphysema", "Emphysema", None, _LUNGS),
    Finding("pulmonary fibrosis", "Fibrosis", None, _LUNGS),
    Finding("pleural thickening", "Pleural_Thickening", None, _LUNGS),
    Finding("hiatal hernia", "Hernia", None, ("heart", "mediastinum", "facies diaphragmatica"), SIZES),
)
"""NIH ChestX-ray14's fourteen, the phantom's first."""

CHEXPERT = (
    Finding("pleural effusion", "Pleural Effusion", None, _BASES, SIZES),
    Finding("pneumothorax", "Pneumothorax", None, _LUNGS, SIZES),
    Finding("cardiomegaly", "Cardiomegaly", None, _HEART),
    Finding("pulmonary edema", "Edema", None, _LUNGS),
    Finding("atelectasis", "Atelectasis", None, _BASES),
    Finding("consolidation", "Consolidation", None, _LUNGS),
    Finding("pneumonia", "Pneumonia", None, _LUNGS),
    Finding("lung opacity", "Lung Opacity", None, _LUNGS),
    Finding("lung lesion", "Lung Lesion", None, _LUNGS, SIZES),
    Finding("enlarged cardiomediastinum", "Enlarged Cardiomediastinum", None, _HEART),
    Finding("pleural abnormality", "Pleural Other", None, _BASES),
    Finding("fracture", "Fracture"),
    Finding("support devices", "Support Devices"),
)
"""CheXpert's fourteen observations but No Finding, which is the absence of all."""

PADCHEST = (
    *(
        Finding(f"{side} {noun}", noun, side, (f"{side} lung", *below), SIZES)
        for noun, below in (("pleural effusion", ("facies diaphragmatica",)), ("pneumothorax", ()))
        for side in SIDES
    ),
    Finding("cardiomegaly", "cardiomegaly", None, _HEART),
    Finding("pulmonary edema", "pulmonary edema", None, _LUNGS),
    Finding("atelectasis", "atelectasis", None, _BASES),
    Finding("consolidation", "consolidation", None, _LUNGS),
    Finding("laminar atelectasis", "laminar atelectasis", None, _BASES),
    Finding("pneumonia", "pneumonia", None, _LUNGS),
    Finding("infiltrates", "infiltrates", None, _LUNGS),
    Finding("interstitial pattern", "interstitial pattern", None, _LUNGS),
    Finding("alveolar pattern", "alveolar pattern", None, _LUNGS),
    Finding("nodule", "nodule", None, _LUNGS, SIZES),
    Finding("calcified granuloma", "calcified granuloma", None, _LUNGS, SIZES),
    Finding("emphysema", "emphysema", None, _LUNGS),
    Finding("air trapping", "air trapping", None, _LUNGS),
    Finding("COPD signs", "COPD signs", None, _LUNGS),
    Finding("bronchiectasis", "bronchiectasis", None, _LUNGS),
    Finding("fibrotic band", "fibrotic band", None, _LUNGS),
    Finding("volume loss", "volume loss", None, _LUNGS),
    Finding("costophrenic angle blunting", "costophrenic angle blunting", None, _BASES),
    Finding("apical pleural thickening", "apical pleural thickening", None, _LUNGS),
    Finding("hemidiaphragm elevation", "hemidiaphragm elevation", None, _BASES),
    Finding("hiatal hernia", "hiatal hernia", None, ("heart", "mediastinum", "facies diaphragmatica"), SIZES),
    Finding("vascular hilar enlargement", "vascular hilar enlargement", None, (*_LUNGS, "mediastinum")),
    Finding("aortic elongation", "aortic elongation", None, _HEART),
    Finding("aortic atheromatosis", "aortic atheromatosis", None, _HEART),
    Finding("scoliosis", "scoliosis", None, ("spine",)),
    Finding("kyphosis", "kyphosis", None, ("spine",)),
)
"""PadChest's most frequent signs in lungs, pleura, heart, vessels and spine, each of 1,200 images and more, and
pneumothorax and consolidation of the phantom's six. Left out: devices and traces of surgery, which are no finding;
diagnoses of the patient (heart insufficiency); what a frontal film of some hundred pixels does not show (vertebral
degeneration, callus); and words without a picture (chronic changes, increased density)."""

PADCHEST_KINDS = {
    "loculated pleural effusion": ("pleural effusion",),
    "loculated fissural effusion": ("pleural effusion",),
    "hydropneumothorax": ("pleural effusion", "pneumothorax"),
    "empyema": ("pleural effusion",),
    "atelectasis basal": ("atelectasis",),
    "lobar atelectasis": ("atelectasis",),
    "segmental atelectasis": ("atelectasis",),
    "round atelectasis": ("atelectasis",),
    "total atelectasis": ("atelectasis",),
    "laminar atelectasis": ("atelectasis",),
    "atypical pneumonia": ("pneumonia",),
    "reticular interstitial pattern": ("interstitial pattern",),
    "reticulonodular interstitial pattern": ("interstitial pattern",),
    "multiple nodules": ("nodule",),
}
"""Labels that are a kind of one of the list: who has the kind has the finding."""

_OTHER = """
abnormal foreign body; abscess; adenopathy; air bronchogram; air fluid level; aortic aneurysm; aortic button
enlargement; aortic endoprosthesis; artificial aortic heart valve; artificial heart valve; artificial mitral
heart valve; asbestosis signs; ascendent aortic elongation; axial hyperostosis; azygoesophageal recess shift;
azygos lobe; blastic bone lesion; bone cement; bone metastasis; breast mass; bronchovascular markings; bullas;
calcified adenopathy; calcified densities; calcified fibroadenoma; calcified mediastinal adenopathy; calcified
pleural plaques; calcified pleural thickening; callus rib fracture; catheter; cavitation; central vascular
redistribution; central venous catheter; central venous catheter via jugular vein; central venous catheter via
subclavian vein; central venous catheter via umbilical vein; cervical rib; chest drain tube; Chilaiditi sign;
chronic changes; clavicle fracture; costochondral junction hypertrophy; cyst; dai; descendent aortic elongation;
dextrocardia; diaphragmatic eventration; double J stent; dual chamber device; electrical device; end on vessel;
endoprosthesis; endotracheal tube; esophagic dilatation; external foreign body; fissure thickening; flattened
diaphragm; fracture; gastrostomy tube; goiter; granuloma; ground glass pattern; gynecomastia; heart
insufficiency; heart valve calcified; hilar congestion; hilar enlargement; humeral fracture; humeral prosthesis;
hyperinflated lung; hypoexpansion; hypoexpansion basal; increased density; kerley lines; lepidic adenocarcinoma;
lipomatosis; lung metastasis; lung vascular paucity; lymphangitis carcinomatosa; lytic bone lesion; major
fissure thickening; mammary prosthesis; mass; mastectomy; mediastinal enlargement; mediastinal mass; mediastinal
shift; mediastinic lipomatosis; metal; miliary opacities; minor fissure thickening; nephrostomy tube; nipple
shadow; non axial articular degenerative changes; normal; NSG tube; obesity; osteopenia; osteoporosis;
osteosynthesis material; pacemaker; pectum carinatum; pectum excavatum; pericardial effusion; pleural mass;
pleural plaques; pleural thickening; pneumomediastinum; pneumoperitoneo; post radiotherapy changes; prosthesis;
pseudonodule; pulmonary artery enlargement; pulmonary artery hypertension; pulmonary fibrosis; pulmonary
hypertension; pulmonary mass; pulmonary venous hypertension; reservoir central venous catheter; respiratory
distress; rib fracture; right sided aortic arch; sclerotic bone lesion; single chamber device; soft tissue mass;
sternoclavicular junction hypertrophy; sternotomy; subacromial space narrowing; subcutaneous emphysema; superior
mediastinal enlargement; supra aortic elongation; surgery; surgery breast; surgery heart; surgery humeral;
surgery lung; surgery neck; suture material; thoracic cage deformation; tracheal shift; tracheostomy tube;
tuberculosis; tuberculosis sequelae; unchanged; vascular redistribution; ventriculoperitoneal drain tube;
vertebral anterior compression; vertebral compression; vertebral degenerative changes; vertebral fracture
"""
PADCHEST_OTHER = frozenset(" ".join(name.split()) for name in _OTHER.split(";"))
"""The other labels of PadChest's table: known, and of no column. What is in none of these lists is another spelling."""
