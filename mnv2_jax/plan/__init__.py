"""What a run will need and how long it will take on TPUs that are not here, by compiling its own step for them."""
