"""What users and publishers give: records, images, archives and true boxes, read where they lie."""
