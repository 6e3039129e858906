"""Unit tests of the emulator; they know nothing of the project around it."""
