"""The commands of `inference` that are more than a few lines; each translates its flags and prints what comes."""
