"""How the shipped base model was made, from nothing (`make base-model`)."""
