"""How much of the identity stays when the reference photo is damaged or attacked."""
