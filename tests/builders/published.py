"""The published tables of public datasets, with invented rows: heads and layout are right."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

NIH_HEAD = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,"
    "Height],OriginalImagePixelSpacing[x,y]"
)
CHEXPERT_HEAD = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
MIMIC_METADATA_HEAD = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
MIMIC_LABELS_HEAD = (
    "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
RSNA_HEAD = "patientId,class"
_VINDR_FINDINGS = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
    "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,"
    "Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,"
    "Tuberculosis,Other diseases,No finding"
)
VINDR_TRAIN_HEAD, VINDR_TEST_HEAD = f"image_id,rad_id,{_VINDR_FINDINGS}", f"image_id,{_VINDR_FINDINGS}"
PADCHEST_HEAD = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,"
    "labelCUIS,LocalizationsCUIS"
)
Cells = dict[str, Any]


def table(head: str, *rows: Cells) -> str:
    """A CSV of that head with these cells, quoted where they must be; the rest is empty."""
    out = io.StringIO()
    csv.DictWriter(out, head.split(","), lineterminator="\n").writerows(rows)
    return f"{head}\n{out.getvalue()}"


def nih(name: str, findings: str, patient: str) -> Cells:
    return {"Image Index": name, "Finding Labels": findings, "Patient ID": patient, "View Position": "PA"}


def chexpert(name: str, view: str = "Frontal", **flags: str) -> Cells:
    said = {finding.replace("_", " "): flag for finding, flag in flags.items()}
    return {"Path": f"CheXpert-v1.0-small/{name}", "Frontal/Lateral": view, **said}


def mimic(dicom_id: str, study: str, view: str = "PA", subject: str = "10000001") -> Cells:
    return {"dicom_id": dicom_id, "subject_id": subject, "study_id": study, "ViewPosition": view}


def padchest(name: str, labels: str, projection: str = "PA", patient: str = "") -> Cells:
    return {"ImageID": name, "Labels": labels, "Projection": projection, "PatientID": patient or f"patient of {name}"}


def votes(image: str, *findings: str) -> list[Cells]:
    return [{"image_id": image, "rad_id": f"R{n}", **({one: "1"} if one else {})} for n, one in enumerate(findings)]


def laid_out(preset: str, patients: Sequence[tuple[str, bool]]) -> tuple[dict[str, str], list[str]]:
    """Return the tables of a dataset, and the path of the image of each patient (a number, and whether it is ill)."""
    made: dict[str, Callable[[Sequence[tuple[str, bool]]], tuple[dict[str, str], list[str]]]] = {
        "nih-cxr14": _nih,
        "chexpert": _chexpert,
        "mimic-cxr": _mimic,
        "rsna-pneumonia": _rsna,
        "vindr-cxr": _vindr,
        "padchest": _padchest,
        "kermany": _kermany,
    }
    return made[preset](patients)


def _nih(patients: Sequence[tuple[str, bool]]) -> tuple[dict[str, str], list[str]]:
    names = [f"{int(number):08}_000.png" for number, _ in patients]
    rows = [
        nih(name, "Pneumonia" if ill else "No Finding", no) for name, (no, ill) in zip(names, patients, strict=True)
    ]
    return {"Data_Entry_2017_v2020.csv": table(NIH_HEAD, *rows)}, [f"images_001/images/{name}" for name in names]


def _chexpert(patients: Sequence[tuple[str, bool]]) -> tuple[dict[str, str], list[str]]:
    names = [f"train/patient{int(number):05}/study1/view1_frontal.jpg" for number, _ in patients]
    flags = [{"Pneumonia": "1.0"} if ill else {"No_Finding": "1.0"} for _, ill in patients]
    rows = [chexpert(name, **said) for name, said in zip(names, flags, strict=True)]
    return {"train.csv": table(CHEXPERT_HEAD, *rows)}, names


def _mimic(patients: Sequence[tuple[str, bool]]) -> tuple[dict[str, str], list[str]]:
    images = [mimic(f"{int(no):08x}-bde0afdd", f"5{int(no):07}", subject=f"1{int(no):07}") for no, _ in patients]
    labels = [
        {name: one[name] for name in ("subject_id", "study_id")} | {"Pneumonia" if ill else "No Finding": "1.0"}
        for one, (_, ill) in zip(images, patients, strict=True)
    ]
    tables = {
        "mimic-cxr-2.0.0-metadata.csv": table(MIMIC_METADATA_HEAD, *images),
        "mimic-cxr-2.0.0-chexpert.csv": table(MIMIC_LABELS_HEAD, *labels),
    }
    return tables, [
        f"files/p{one['subject_id'][:2]}/p{one['subject_id']}/s{one['study_id']}/{one['dicom_id']}.jpg"
        for one in images
    ]


def _rsna(patients: Sequence[tuple[str, bool]]) -> tuple[dict[str, str], list[str]]:
    rows = [{"patientId": f"{int(no):08x}", "class": "Lung Opacity" if ill else "Normal"} for no, ill in patients]
    files = [f"stage_2_train_images/{row['patientId']}.dcm" for row in rows]
    return {"stage_2_detailed_class_info.csv": table(RSNA_HEAD, *rows)}, files


def _vindr(patients: Sequence[tuple[str, bool]]) -> tuple[dict[str, str], list[str]]:
    names = [f"{int(number):032x}" for number, _ in patients]
    said = ["Pneumonia" if ill else "No finding" for _, ill in patients]
    rows = [row for name, one in zip(names, said, strict=True) for row in votes(name, one, one, "Cardiomegaly")]
    return {"annotations/image_labels_train.csv": table(VINDR_TRAIN_HEAD, *rows)}, [f"train/{n}.dicom" for n in names]


def _padchest(patients: Sequence[tuple[str, bool]]) -> tuple[dict[str, str], list[str]]:
    names = [f"{int(number):039}.png" for number, _ in patients]
    rows = [
        padchest(name, "['pneumonia']" if ill else "['normal']", patient=number)
        for name, (number, ill) in zip(names, patients, strict=True)
    ]
    name = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
    return {name: table(PADCHEST_HEAD, *rows)}, [f"0/{one}" for one in names]


def _kermany(patients: Sequence[tuple[str, bool]]) -> tuple[dict[str, str], list[str]]:
    names = {True: "train/PNEUMONIA/person{}_bacteria_1.jpeg", False: "train/NORMAL/IM-{:0>4}-0001.jpeg"}
    return {}, [names[ill].format(number) for number, ill in patients]
