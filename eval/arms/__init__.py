"""Generation of test identities by several arms, judged by networks that did not train the generator."""
