"""What the archive of the CT sample must hold: names, SHA-256 sums and the classes taken from it."""

from __future__ import annotations

from sparseg.datasets.sample_archive import Archive

PACKAGE = "totalsegmentator"
VERSION = "2.18.0"
ARCHIVE = f"{PACKAGE}-{VERSION}.tar.gz"
ARCHIVE_SHA256 = "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03"

_ROOT = f"{PACKAGE}-{VERSION}/"
_FILES = _ROOT + "tests/reference_files/"

LICENSE = _ROOT + "LICENSE"
CLASS_MAP = _ROOT + "totalsegmentator/map_to_binary.py"
CT_A_IMAGE = _FILES + "example_ct.nii.gz"
CT_A_LABEL = _FILES + "example_seg_fast_force_split.nii.gz"
CT_C_FOLDER = _FILES + "example_ct_dicom/"
CT_C_LABEL = _FILES + "example_seg_dicom.nii.gz"

# The 20 DICOM files differ in the last two digits of their names.
_CT_C_STEM = CT_C_FOLDER + "CT.1.3.12.2.1107.5.1.4.60064.300000221208081134280000165"
_CT_C_SHA256 = {
    "73": "4c5633409fa4d3edf6871e5684e9e1b10325b4d0949997582f43b23a684d0dc4",
    "74": "9148f91127145497f4d6c6f0780f9452504cd7fe5088ec8f2bf2b21800c731ff",
    "75": "3edaccec892e0821440cbefe3d5465923bb5146c316cbaf58f578d962f120484",
    "76": "9b68685f0c5f9bfcfc2c397f4fadf431da288d7422ca72e7d9031d4e039418cd",
    "77": "c8d2c0dc05e414d47d3652c658d8fecc20c3cf7ce106c10d84ad033d39700bcc",
    "78": "0ee2c1d58e06cedd91483ca35c04da3c26fea0dbe88aaf1eaa950b57f38357d6",
    "79": "c76cf0818d4215b92883d109b8a0b62ae0a4d81637eed98738f9c62b6f49bb72",
    "80": "106e20514fd3ca66895e14dbfba96c01c1195e4ed890c035d4368dd71f3ee116",
    "81": "5804e6c4a50f4d5b20040ac82a1c6d79cba5f7267d71f10b0a1b49eda1bc13ff",
    "82": "bef219a16b22949224de4581a2d288863b2585d29556ac24021f03307378cb39",
    "83": "9de5a49e880417d5330fe299115fdb95831a98234216a31c5c0e9a0be9a6dcd3",
    "84": "fa00c8d81ec8aa0d0cfc4e05343782c3a75a4c60df8cccf9ff5db42ac454e61d",
    "85": "ebba0900b0f728db0c94c769db3e5ca38a0cd916386a727541eb3e56350770e5",
    "86": "f084ec95cfba25efb7cbe86e8b4966b051904037e8385f58fe398c5475693b89",
    "87": "20a9b88a30ea8a824ac65cb19c1ebf80964b41ff476497706ff2a286e5f27a25",
    "88": "2a515d3b60f3ff733aac1fc5414206c331e3ed2ccef8c2e0c30b844c538e3ed8",
    "89": "5880669f1bc36b09cad4bdf487992ec415da0afa014e927efc282e612f467574",
    "90": "7af4dd5b5766a87368939116b91f90d989820e7b2237fb9bcd10d47db0960875",
    "91": "671306f4462ae881976c18c6a2d8a1567279fb0166ef0e9e8a41271fac9c1cbb",
    "92": "fdb76ad5272f074e07cc81509604fd163f2f8a9903d34b16ba6f078250373c51",
}

MEMBERS = {
    LICENSE: "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
    CLASS_MAP: "ee19259dacd4d52d424849b8bac44a5a5d41c895426bf7c048c69203a1a3777d",
    CT_A_IMAGE: "dbd3ae6d614d1d7ef3a46925c30c70038ed52da6b37fdd6afdc7b9b71387e3e1",
    CT_A_LABEL: "e8097758e56e73099075b6caaebce23ef11bc6fad66a4ec3753b9406846558c7",
    CT_C_LABEL: "98af7f6536c316ff9084054f20956cd3e28af376b81d582d269fbea2744878fc",
    **{_CT_C_STEM + digits: value for digits, value in _CT_C_SHA256.items()},
}

SOURCE = Archive(PACKAGE, VERSION, ARCHIVE, ARCHIVE_SHA256, MEMBERS)

# Our id is the place in this list plus one; (id in the archive's class map "total", its name there, our
# name).
ORGANS = (
    (1, "spleen", "spleen"),
    (2, "kidney_right", "right kidney"),
    (3, "kidney_left", "left kidney"),
    (4, "gallbladder", "gallbladder"),
    (5, "liver", "liver"),
    (6, "stomach", "stomach"),
    (7, "pancreas", "pancreas"),
    (8, "adrenal_gland_right", "right adrenal gland"),
    (9, "adrenal_gland_left", "left adrenal gland"),
    (52, "aorta", "aorta"),
    (63, "inferior_vena_cava", "inferior vena cava"),
    (64, "portal_vein_and_splenic_vein", "portal and splenic vein"),
)
