"""Bytes to radiograph: JPEG, PNG and DICOM."""
