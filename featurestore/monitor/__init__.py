"""Does what was served agree with what offline says?"""
