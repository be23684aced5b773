"""What exists, who owns it, and how healthy is it?"""
