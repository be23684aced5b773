"""Do these values still look like those the model was trained on? Effect sizes, corrected p-values, alarms."""
