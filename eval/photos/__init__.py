"""What is measured on a user's own folder of photographs, one folder per person."""
