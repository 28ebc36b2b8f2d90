"""File formats: JPEG, PNG and DICOM taken apart and decoded, each by written rules."""
