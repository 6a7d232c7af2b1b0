"""ProgEmu's stages."""
