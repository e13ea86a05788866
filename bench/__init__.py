"""How fast and how small: this project beside plain OpenSlide and other libraries. See README.md."""
