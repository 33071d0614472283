"""Small families of models that this project trains itself."""
