"""Read, check and match the data a user brings: annotations, image names, boxes and archives."""
