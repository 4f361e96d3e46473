"""Run studies: arms x paired seeds x rounds, every arm an ordinary campaign."""
