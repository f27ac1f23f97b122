"""From image files to label files on the same grid."""
